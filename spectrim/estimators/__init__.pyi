from spectrim.estimators._registry import ESTIMATORS as ESTIMATORS
from spectrim.estimators._smoothing import ABSTAIN as ABSTAIN
from spectrim.estimators._smoothing import RandomizedSmoothing as RandomizedSmoothing
from spectrim.estimators.altmin_completion import LowRankImputer as LowRankImputer
from spectrim.estimators.dual_smoothing import DualSmoothing as DualSmoothing
from spectrim.estimators.dual_smoothing import checkerboard as checkerboard
from spectrim.estimators.dual_smoothing import dual_radius as dual_radius
from spectrim.estimators.frechet_sdr import FrechetSDR as FrechetSDR
from spectrim.estimators.frechet_sdr import fccov as fccov
from spectrim.estimators.kronecker_sbl import KroneckerSBL as KroneckerSBL
from spectrim.estimators.mcr2_clustering import ManifoldClustering as ManifoldClustering
from spectrim.estimators.patch_anomaly import PatchAnomalyDetector as PatchAnomalyDetector
from spectrim.estimators.self_expressive_clustering import (
    SelfExpressiveClustering as SelfExpressiveClustering,
)
from spectrim.estimators.sensitivity_sampling import SensitivitySampler as SensitivitySampler
from spectrim.estimators.sensitivity_sampling import sensitivities as sensitivities
from spectrim.estimators.spectral_truncation import SpectralProbe as SpectralProbe
from spectrim.estimators.spectral_truncation import truncate_head as truncate_head
from spectrim.estimators.subgm_recovery import RobustLowRank as RobustLowRank
from spectrim.estimators.subspace_detector import SubspaceDetector as SubspaceDetector
from spectrim.estimators.supervised_dictionary import (
    SupervisedDictionary as SupervisedDictionary,
)

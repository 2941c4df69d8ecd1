"""The plug-in of transformers, also for checkpoints that are cut on loading."""

from __future__ import annotations

from typing import Any

from spectrim.checkpoint.elastic.model import ElasticModel
from spectrim.checkpoint.transformers_plugin import SpectrimQuantizer


class ElasticQuantizer(SpectrimQuantizer):
    """Load one size of an elastic checkpoint, and every other checkpoint as it is."""

    elastic: ElasticModel | None = None

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.quantization_config.elastic is not None:
            files = kwargs.get("checkpoint_files") or ()
            self.elastic = ElasticModel.of(model, self.quantization_config, files)
            self.quantization_config = self.elastic.config
        model = super()._process_model_before_weight_loading(model, **kwargs)
        if self.elastic is not None:
            self.elastic.prepare(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.elastic is not None:
            self.elastic.fill(model)
        return super()._process_model_after_weight_loading(model, **kwargs)

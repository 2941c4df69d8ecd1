"""The pipeline: tokens -> calibration -> decomposition -> plan -> layers -> figures.

Each step takes values and returns a value; a `Cache` stores the long ones between runs.
"""

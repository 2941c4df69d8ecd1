"""The conductor: tokens -> calibration -> decomposition -> plan -> layers -> figures.

Each verb takes values and returns a value; a `Cache` keeps the long ones between runs.
"""

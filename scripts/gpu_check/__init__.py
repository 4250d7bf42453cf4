"""Build, check, measure and test on a GPU machine that is had for minutes; see ../gpu_check.sh.

The standard library alone: it must say what is wrong where nothing else can be imported.
"""

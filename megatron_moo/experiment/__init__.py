"""The experiment: does resolving conflict help, against fair baselines, in a model that a CPU can train?

One process trains many small runs (cells) one after another: the same model, data, blocks, methods and optimizer as
``megatron-moo train``, without starting Megatron anew for each (``tests/end_to_end/test_experiment.py`` holds its
losses against that command's).
"""

"""Preference tuning of a small language model on a free GPU: what the four notebooks call.

The layers, bottom up (an upper one may import a lower one, never the reverse):

    errors records stats verdicts          pure: rows, scores, verdicts, intervals
    pairs prompts params                   pure: selection, validation
    store sources stages                   files: replies, datasets, stage folders
    models engines judges                  models and servers
    training evaluation plots              what the notebooks show
    notebook run                           opening a stage inside a notebook; all four headless
"""

__version__ = "0.1.0"

"""The owner's side of a node: who may ask it for what, and what was asked and given.

The standard library only, for Python 3.8 or newer: this package and the agent are all that an enrolled node runs of
fedctl before its owner has approved anything.
"""

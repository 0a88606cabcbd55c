"""Differential privacy: noise that nobody can foretell, updates of bounded length, and what both come to.

`noise` draws, `clipping` bounds, `central` and `distributed` say where the noise goes, `accounting` is the door to the
libraries' accountants. The nodes run this package too; only `central` knows strategies.
"""

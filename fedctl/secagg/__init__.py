"""Secure aggregation: the coordinator learns the sum of the nodes' updates, and of no single one anything else.

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, with the sparse graph
of Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020. A library of functions over
frozen records, for both sides, that asks nothing of disk, clock and network but in `keys.Identity`, a key in a file.

- `place`: which run, round and node; it is bound into every key, seal and signature.
- `ring`: updates as whole numbers modulo 2^16, 2^32 or 2^64, whose sum never overflows.
- `shamir`, `graph`, `keys`, `masks`: the parts that the protocol is made of.
- `messages`: what crosses the wire.  `secret`: what a node keeps of a round.
- `node`: the node's side.  `coordinator`: the other.

The nodes run this package too, under Python 3.10 or newer.
"""

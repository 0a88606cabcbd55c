"""The second program: what runs on a node.

`agent.py` is one standard-library file that the coordinator sends and talks to; `worker.py` imports torch and Lightning
once and forks; `task.py` does one task; `trainers/` knows Lightning. It uses `records`, `weights` and `codecs` of the
package and nothing else.
"""

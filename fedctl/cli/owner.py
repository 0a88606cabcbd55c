"""`fedctl node`: for the owner of a node, by a program that also runs where fedctl is not installed."""

import typer


def node(context: typer.Context) -> None:
    """For a node's owner: what may run there, and what did.

    On the node itself: enroll, revoke, show, approve, withdraw, peers, trust, distrust, ledger, export.
    """
    from fedctl.node.owner.cli import main

    raise typer.Exit(main(context.args))

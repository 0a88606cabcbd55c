"""`fedctl node`: for the owner of a node, by a program that also runs where fedctl is not installed."""

import typer


def node(context: typer.Context) -> None:
    """Decide what a coordinator may do on this machine, and see what it did.

    For the owner of a node, on the node: enroll, revoke, show, approve, withdraw, peers, trust, ledger, export.
    """
    from fedctl.node.owner.cli import main

    raise typer.Exit(main(context.args))

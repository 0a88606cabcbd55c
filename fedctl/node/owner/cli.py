"""`fedctl node`: what the owner of a node types on it. Also all there is where fedctl itself is not installed."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from pathlib import Path

import fedctl
from fedctl.node.owner import enrol, identity, ledger, program, publickey, standing
from fedctl.node.owner.approvals import Approvals
from fedctl.node.owner.errors import STATE, USAGE, OwnerError
from fedctl.node.owner.place import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, NoReturn, Optional, Sequence

SHOWN = "the key that is meant: its file or its fingerprint; needed where several are enrolled"


def main(arguments: Optional[Sequence[str]] = None, name: str = "fedctl node") -> int:
    """Do what the arguments say; returns the exit code. Errors go to stderr, as a sentence and what to type next."""
    words = parser(name).parse_args(arguments)
    before = os.umask(0o077)  # what is written here is the owner's alone, whatever the login's own umask
    try:
        code: int = words.do(words)
    except OwnerError as error:
        return tell(error.message, error.hint, error.code, as_json=getattr(words, "json", False))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return tell(f"{where}{error.strerror or error}", "make room there, or make it writable", STATE)
    except KeyboardInterrupt:
        return 130
    finally:
        os.umask(before)
    return code


def tell(message: str, hint: str, code: int, *, as_json: bool = False) -> int:
    """Show an error, once."""
    if as_json:
        say(json.dumps({"error": {"message": message, "hint": hint or None, "exit_code": code}}, indent=2))
    else:
        sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return code


def say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with the words as everything here does: a sentence, and what to type next."""

    verbs: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        typed = re.search(r"invalid choice: '(.*?)'", message)
        near = difflib.get_close_matches(typed.group(1), self.verbs, 1) if typed else []
        hint = f"did you mean `{self.prog} {near[0]}`?" if near else f"`{self.prog} --help` says what there is"
        sys.exit(tell(message, hint, USAGE))


def parser(name: str) -> argparse.ArgumentParser:
    """The command line."""
    root = Parser(
        prog=name,
        description="Decide what a coordinator may do on this machine, and see what it did.",
        epilog=f"Begin with `{name} enroll --key coordinator.pub`.",
    )
    root.add_argument("--version", action="version", version=f"fedctl {fedctl.__version__}")
    commands = root.add_subparsers(metavar="COMMAND", dest="command")
    commands.required = True

    def command(verb: str, do: object, what: str, more: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(verb, help=what, description=f"{what} {more}".strip())
        made.set_defaults(do=do)
        return made

    one = command(
        "enroll",
        enroll,
        "Let a coordinator's key in, for what your policy allows and nothing else.",
        "Writes one line of authorized_keys, with a forced command: the key gets no shell, no files and no forwarding. "
        "A second time it renews fedctl's program here and, with --policy, the policy.",
    )
    one.add_argument("--key", required=True, type=Path, metavar="FILE", help="the coordinator's public key (.pub)")
    one.add_argument("--policy", type=Path, metavar="FILE", help="your policy.yaml; it holds for all enrolled keys")
    one.add_argument(
        "--authorized-keys", type=Path, metavar="FILE", help="where sshd looks, if not ~/.ssh/authorized_keys"
    )
    one.add_argument(
        "--python", metavar="PATH", help="the Python (3.8 or newer) that serves the key, by its whole path"
    )
    one.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    one = command(
        "revoke",
        revoke,
        "Lock a key out at once, and end all that it has at work here.",
        "The ledger stays, and so do approvals and the policy.",
    )
    one.add_argument("--key", metavar="FILE|FINGERPRINT", help=SHOWN)
    one = command("show", show, "Show who is enrolled, what the policy says, what waits for you, and what was done.")
    one.add_argument("--json", action="store_true", help="print one JSON document on stdout, and nothing else there")
    one = command(
        "approve",
        approve,
        "Show code or packages that wait for you, against what you approved last, and approve them.",
        "What is approved is those bytes: any change waits for you again.",
    )
    one.add_argument("digest", nargs="?", metavar="DIGEST", help="its first digits; needed where several wait")
    one.add_argument("--yes", action="store_true", help="approve without being asked")
    one = command("withdraw", withdraw, "Take an approval back, or refuse what waits; what runs already goes on.")
    one.add_argument("digest", metavar="DIGEST", help="its first digits")
    one = command("peers", peers, "Show this node's fingerprint, and those of other nodes that you have pinned.")
    one = command(
        "trust",
        trust,
        "Pin another node's fingerprint, which its owner tells you: no other key can speak under its name then.",
    )
    one.add_argument("name", metavar="NAME", help="the node's name in fed.yaml")
    one.add_argument("fingerprint", metavar="FINGERPRINT", help="SHA256:..., as `show` prints it there")
    one = command("distrust", distrust, "Take a pin away.")
    one.add_argument("name", metavar="NAME")
    one = command("ledger", show_ledger, "Show all that has left this machine through fedctl.")
    one.add_argument("--run", metavar="RUN", help="of one run alone")
    one.add_argument(
        "--kind", choices=ledger.KINDS, help=f"of one kind alone: {', '.join(ledger.KINDS)}", metavar="KIND"
    )
    one.add_argument(
        "--unguarded", action="store_true", help="where keys are enrolled: what left by logins beside them"
    )
    one.add_argument("--verify", action="store_true", help="see whether anything in it was changed since")
    one.add_argument("--json", action="store_true", help="print one JSON document on stdout, and nothing else there")
    one = command("export", export, "Write this program into one file, for machines that have a Python and no fedctl.")
    one.add_argument("file", nargs="?", type=Path, default=Path("fedctl-node.pyz"), metavar="FILE")
    root.verbs = tuple(commands.choices)
    return root


def enroll(words: argparse.Namespace) -> int:
    place = Place.here()
    key = publickey.read(words.key)
    python = words.python or program.python_here()
    enrolment = enrol.Enrolment(place, key, words.policy, words.authorized_keys, python)
    if words.dry_run:
        say(
            f"would write below {place.folder}, and into {enrolment.authorized_keys}:",
            enrolment.line,
        )
        return 0
    enrolment.carry_out()
    found = standing.standing(place)
    others = len(found["keys"]) - 1
    say(
        f"{'renewed' if enrolment.is_renewed else 'enrolled'} {key.fingerprint} {key.comment}".rstrip(),
        f"  {enrolment.authorized_keys}: one line, with a forced command",
        *(
            [f"  the policy holds for {others} more key{'s' if others > 1 else ''} too"]
            if others and words.policy
            else []
        ),
        "what it may do now:",
        *(f"  {term}" for term in found["policy"]["terms"]),
        *(f"  attention: {reason}" for reason in found["policy"]["unable"]),
        f"this node's identity, to be told to the others: {found['identity']}",
        "next: `fedctl node show` when the coordinator has sent its code; `fedctl node approve` shows and approves it",
    )
    return 0


def revoke(words: argparse.Namespace) -> int:
    place = Place.here()
    key = enrol.choose(place, words.key)
    say(f"revoked {key.fingerprint} {key.comment}".rstrip(), *(f"  {line}" for line in enrol.revoke(place, key)))
    if key.home.exists():
        say(f"  what it kept here is in {key.home}: `rm -r {key.home}` removes it")
    return 0


def show(words: argparse.Namespace) -> int:
    found = standing.standing(Place.here())
    say(*([json.dumps(found, indent=2)] if words.json else standing.lines(found)))
    return 0


def approve(words: argparse.Namespace) -> int:
    """Without a digest all that waits is shown, one after the other."""
    approvals = Approvals(Place.here().folder)
    waiting = [approvals.find(words.digest)] if words.digest else [asked.digest for asked in approvals.pending()]
    if not waiting:
        raise OwnerError("nothing waits for you", "a coordinator's `fedctl provision` shows you what it has")
    if words.yes and len(waiting) > 1:
        known = ", ".join(each[:12] for each in waiting)
        raise OwnerError(f"{len(waiting)} wait for you: {known}", "name one: `approve DIGEST --yes`", code=USAGE)
    left = 0
    for digest in waiting:
        say(*approvals.diff(digest))
        if words.yes or is_sure(f"approve {digest[:12]}?"):
            approvals.approve(digest)
            say(f"approved {digest[:12]}: the coordinator goes on by itself")
        else:
            say(f"{digest[:12]} still waits")
            left += 1
    return 1 if left else 0


def is_sure(question: str) -> bool:
    """Whether the owner says yes; raises OwnerError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise OwnerError("there is no terminal to ask you at", "add --yes", code=USAGE)
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def withdraw(words: argparse.Namespace) -> int:
    approvals = Approvals(Place.here().folder)
    digest = approvals.find(words.digest)
    approvals.withdraw(digest)
    say(f"withdrawn {digest[:12]}")
    return 0


def peers(_: argparse.Namespace) -> int:
    place = Place.here()
    found: List[str] = [f"this node  {identity.fingerprint(place) or 'has no identity yet'}"]
    say(*found, *(f"{name}  {pinned}" for name, pinned in identity.peers(place).items()))
    return 0


def trust(words: argparse.Namespace) -> int:
    identity.trust(Place.here(), words.name, words.fingerprint)
    say(f"pinned {words.name} {words.fingerprint}")
    return 0


def distrust(words: argparse.Namespace) -> int:
    identity.distrust(Place.here(), words.name)
    say(f"{words.name} is pinned no more")
    return 0


def show_ledger(words: argparse.Namespace) -> int:
    homes = Place.here().homes_of_ledgers
    shown, last = homes[-1 if words.unguarded else 0], homes[-1]
    code = ledger.show(shown, words.run, words.kind, verify=words.verify, as_json=words.json)
    if shown != last and not words.json:
        say(f"{last} has another, of what left by logins that nobody guards: --unguarded shows it")
    return code


def export(words: argparse.Namespace) -> int:
    program.export(words.file)
    say(f"wrote {words.file}; on the node: `python3 {words.file.name} enroll --key coordinator.pub`")
    return 0


if __name__ == "__main__":
    sys.exit(main())

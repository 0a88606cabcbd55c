import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.secagg import coordinator, node
from fedctl.secagg.messages import Advert, Agreement, Cohort, Inbox, Revealed, Sealed, Signed, Survivors
from fedctl.secagg.place import Place
from fedctl.secagg.ring import Scale
from fedctl.secagg.secret import Private, Secrets
from tests.fuzz import JSON, mutated
from tests.unit.secagg import ROUND, RUN, Played, dealt, names, vectors_of

KINDS = [Place, Advert, Cohort, Sealed, Inbox, Survivors, Signed, Agreement, Revealed, Private, Secrets, Scale]


@pytest.fixture(scope="module")
def readers():
    """Each message, and how the other side reads it."""
    met, shared = Played(names(4)).advertise().gather(), dealt(4)
    played = dealt(4).mask(vectors_of(names(3), 2)).agree().unmask()
    round = (played.cohort, "n000", played.sharers, played.survivors)
    own = played.secrets["n000"]
    return [
        (played.adverts["n000"], lambda value: coordinator.check_advert(value, RUN, ROUND, "n000")),
        (played.sealed["n000"], lambda value: coordinator.check_sealed(value, played.cohort, "n000")),
        (Signed(signature=played.signatures["n000"]), lambda value: coordinator.check_signed(value, *round)),
        (played.revealed["n000"], lambda value: coordinator.check_revealed(value, *round)),
        (met.cohort, lambda value: node.share(met.secrets["n000"], Cohort.from_json(value), least=2)),
        (shared.inbox("n000"), lambda value: node.receive(shared.secrets["n000"], Inbox.from_json(value))),
        (played.agreement(), lambda value: node.unmask(own, Agreement.from_json(value))),
        (own, Secrets.from_json),
    ]


@pytest.mark.parametrize("kind", KINDS)
@given(value=JSON)
@settings(max_examples=50, deadline=None)
def test_json_that_is_no_message_is_a_valueerror(kind, value):
    with pytest.raises(ValueError):
        kind.from_json(value)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_is_refused_with_a_valueerror_or_read(readers, data):
    message, read = data.draw(st.sampled_from(readers))
    form = message.to_json()
    read(form)
    with contextlib.suppress(ValueError):
        read(json.loads(mutated(data, json.dumps(form).encode())))
    with contextlib.suppress(ValueError):
        read({**form, data.draw(st.sampled_from(sorted(form))): data.draw(JSON)})

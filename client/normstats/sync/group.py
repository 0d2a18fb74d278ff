# Generated from normstats/aio/group.py by tools/generate_sync.py: do not edit.
"""A member of a group: gives its part to each round, and gets what all parts give together."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from normstats import membership, specs
from normstats.backoff import Backoff
from normstats.errors import Cancelled, FailedPrecondition, NormstatsError, connection_broke, from_grpc
from normstats.results import Array, Round
from normstats.sync import concurrency
from normstats.v1 import normalization_service_pb2 as pb

if TYPE_CHECKING:
    from normstats.sync.connection import Connection


class Member:
    """One of `size` members. A context manager: leaving it lets another take its place.

    A connection that breaks is made again, and the part that was on its way is given again and taken once.
    """

    def __init__(self, connection: Connection, terms: membership.Terms, spec: specs.RunningSpec) -> None:
        self._connection = connection
        self._terms = terms
        self._spec = spec
        self._place = membership.Place()
        self._target = ""  # where the group lives, if that is not where the client is connected to
        self._talk: concurrency.Conversation | None = None
        self._left = False

    @property
    def id(self) -> bytes:
        """This member's id, as `Round.members` has it."""
        return self._place.member_id

    def sync(
        self, batch: Any, *, weights: Any = None, lengths: Any = None, mask: Any = None, vector: Any = None
    ) -> Round:
        """Give this batch's moments to the open round; returns the moments of all members' batches together.

        An empty batch takes part and adds nothing. `vector`, if given, is added up as by `reduce`, in the same round.

        Raises:
            InvalidArgument: the batch does not fit, or the vector is of another length than the others'.
            DeadlineExceeded: members were missing when the round's time was over; nothing was merged.
            FailedPrecondition: the round was closed without this part (reason ROUND_CLOSED); it was completed, and its
                result lost with the server that had it (RESULT_LOST); or the group has other terms.
            Unavailable: no server within the timeout.
        """
        part = membership.part(self._spec, batch, vector, weights=weights, lengths=lengths, mask=mask)
        return Round.of(self._exchange(part))

    def reduce(self, vector: Any) -> Array:
        """Add up float64 numbers over all members, each sum rounded once; the same shape, for every member.

        Raises:
            as `sync`.
        """
        part = membership.part_of_vector(self._spec, vector, self._terms)
        return Round.of(self._exchange(part)).vector_like(vector)

    def leave(self) -> None:
        """Leave the group. A part that was given stays."""
        self._left = True
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def _exchange(self, part: pb.SynchronizeStatsRequest.Part) -> pb.SynchronizeStatsResponse.Merged:
        """Give a part and get its round, however often the connection breaks."""
        end = monotonic() + self._terms.timeout_seconds + self._connection.timeout
        backoff, given, hopped = Backoff(), False, False
        while True:
            if self._left:
                raise Cancelled("this member has left its group")
            try:
                talk = self._joined(given)
                given = True
                part.round = self._place.next_round
                talk.send(pb.SynchronizeStatsRequest(part=part))
                merged: pb.SynchronizeStatsResponse.Merged = (talk.receive()).merged
                self._place.done(merged.round)
                return merged
            except grpc.RpcError as error:
                self._hang_up()
                told = from_grpc(error)
                if not self._goes_on(told, error) or monotonic() > end:
                    raise told from error
            except BaseException:
                self._hang_up()
                raise
            if not self._target or hopped:
                concurrency.sleep(backoff.next_seconds())
            hopped = bool(self._target)

    def _goes_on(self, told: NormstatsError, error: grpc.RpcError) -> bool:
        """Whether to join again after an error, and where."""
        if owner := told.metadata.get("owner"):
            self._target = owner
            return True
        self._place.heard(told.metadata.get("next_round"))
        broke, self._target = connection_broke(error), ""
        return broke

    def _joined(self, given: bool) -> concurrency.Conversation:
        """The conversation; a new one begins with joining."""
        if self._talk is not None:
            return self._talk
        stub = self._connection.stub_at(self._target)
        talk = concurrency.Conversation(stub.SynchronizeStats)
        self._talk = talk
        talk.send(pb.SynchronizeStatsRequest(join=self._terms.join(self._place)))
        joined = (talk.receive()).joined
        if not self._place.take(joined.group_id, joined.round, given=given):
            raise FailedPrecondition(
                "the group has ended and another has its name; this part is in neither of them", reason="ROUND_CLOSED"
            )
        return talk

    def _hang_up(self) -> None:
        if self._talk is not None:
            talk, self._talk = self._talk, None
            talk.end()

"""A real Prometheus watches a real server: each rule and each panel says what has happened there.

Tests are in the order in which things happen: the load is over, then the server's files go bad, its disk hangs and
fails, and it is killed.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import dashboard
from tests.deploy.dashboard import Query, expression_of, filled, queries, variables
from tests.deploy.manifests import rules
from tests.deploy.prometheus import Sample
from tests.deploy.watched import OBS, REWARD, SNAPSHOT, Watched
from tests.faults.strace import failing, need_strace

TIMES = 12
ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDS = [rule for rule in rules() if "record" in rule]

# Queries without an answer while all is well, and why.
EMPTY = {
    ("Memory of the device", "A"): "there is no GPU",
    ("Memory of the device", "B"): "there is no GPU",
    ("The device is busy", "A"): "there is no GPU",
}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with Watched(tmp_path_factory.mktemp("watched")) as site:
        site.load(TIMES)
        yield site


@pytest.fixture(scope="module")
def chosen(watched: Watched) -> dict[str, list[str]]:
    """The values that each variable of the dashboard finds, each in the light of those before it; all are chosen."""
    found: dict[str, list[str]] = {}
    for name, variable in variables().items():
        (selector, label), *_ = re.findall(r"^label_values\((.+), (\w+)\)$", variable["query"]["query"])
        found[name] = watched.prometheus.values_of(label, filled(selector, found))
    return found


@pytest.fixture
def answer(watched: Watched, chosen: dict[str, list[str]]) -> Callable[..., list[Sample]]:
    """What a query is answered with; a rate is one of the time of the load."""

    def ask(expression: str, *, at_once: bool = True, load: bool = False) -> list[Sample]:
        seconds = round(time.time() - watched.started_at)
        filled_in = filled(expression, chosen, f"{seconds}s" if load else "1m")
        if at_once:
            return watched.prometheus.query(filled_in)
        return watched.prometheus.drawn(filled_in, seconds)

    return ask


def test_the_variables_find_what_there_is(chosen: dict[str, list[str]]) -> None:
    assert chosen == {
        "job": ["normstats"],
        "namespace": ["production"],
        "pod": ["normstats-0"],
        "normalizer": [OBS, REWARD],
    }


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.panel}, {query.ref}")
def test_every_panel_shows_something(answer: Callable[..., list[Sample]], query: Query) -> None:
    found = answer(query.expression, at_once=query.at_once)
    assert bool(found) == ((query.panel, query.ref) not in EMPTY)


@pytest.mark.parametrize("rule", RECORDS, ids=lambda rule: rule["record"])
def test_every_rule_records_something(watched: Watched, rule: dict[str, Any]) -> None:
    assert watched.prometheus.query(rule["record"])


def test_prometheus_can_evaluate_every_rule(watched: Watched) -> None:
    assert watched.prometheus.ill_rules() == []


# Of all that has happened these are what should be told of: rounds were made to fail, and rows to move.
TRUE_AFTER_THE_LOAD = {"NormstatsDrift", "NormstatsRoundsFailing"}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}, {rule['labels']}")
def test_every_alert_is_silent_where_there_is_nothing_to_tell(watched: Watched, rule: dict[str, Any]) -> None:
    assert bool(watched.prometheus.query(rule["expr"])) == (rule["alert"] in TRUE_AFTER_THE_LOAD)


def test_calls_are_told_by_method_and_code_as_callers_know_them(watched: Watched) -> None:
    told = watched.prometheus.query("sum by (method, code) (normstats_calls_total)")
    by_call = {(one.labels["method"], one.labels["code"]): one.value for one in told}
    assert {call: by_call[call] for call in watched.calls} == watched.calls
    refused = watched.prometheus.by("reason", "sum by (reason) (normstats_calls_refused_total)")
    assert refused == {"RATE_LIMITED": watched.calls["GetDevice", "RESOURCE_EXHAUSTED"]}


def test_contributions_and_rounds_are_told_by_what_became_of_them(watched: Watched) -> None:
    told = watched.prometheus.by("outcome", "sum by (outcome) (normstats_contributions_total)")
    assert told == watched.contributions
    assert watched.prometheus.by("outcome", "sum by (outcome) (normstats_rounds_total)") == watched.rounds


def during(watched: Watched, samples: list[Sample], label: str) -> dict[str, float]:
    """What rates come to over the time that they are of."""
    seconds = round(time.time() - watched.started_at)
    return {one.labels.get(label, ""): one.value * seconds for one in samples}


@pytest.mark.parametrize(
    ("panel", "label", "expected"),
    [
        ("Calls, by method", "method", {"UpdateRunningStats": 6 * TIMES, "Normalize": 10 * TIMES}),
        (
            "Calls that were not OK, by code",
            "code",
            # UpdateRunningStats and Normalize each miss one.
            {
                "NOT_FOUND": 2 * TIMES,
                "INVALID_ARGUMENT": TIMES,
                "UNAUTHENTICATED": TIMES,
                "PERMISSION_DENIED": 2 * TIMES,
                "RESOURCE_EXHAUSTED": TIMES,
                "DEADLINE_EXCEEDED": 2,
            },
        ),
        ("Calls refused, by reason", "reason", {"RATE_LIMITED": TIMES}),
        (
            "Contributions, by what became of them",
            "outcome",
            {"merged": 5 * TIMES, "duplicate": TIMES, "refused": TIMES},
        ),
        ("Rounds, by how they ended", "outcome", {"completed": 1, "failed": 2}),
        ("Messages on streams", "pod", {"normstats-0": TIMES}),
    ],
)
def test_panels_tell_how_often_things_happened(
    watched: Watched, answer: Callable[..., list[Sample]], panel: str, label: str, expected: dict[str, float]
) -> None:
    told = during(watched, answer(expression_of(panel), load=True), label)
    # A rate is made up to both ends of its time, which are up to a second away from samples.
    assert {key: told[key] for key in expected} == pytest.approx(expected, rel=0.25)


def test_panels_tell_how_many_bytes_were_normalized(watched: Watched, answer: Callable[..., list[Sample]]) -> None:
    expected = watched.normalized_bytes * TIMES / (TIMES + 1)
    for ref in "AB":
        (told,) = during(watched, answer(expression_of("Tensors", ref), load=True), "").values()
        assert told == pytest.approx(expected, rel=0.25)


def test_panels_of_normalizers_tell_what_clients_are_told(
    watched: Watched, answer: Callable[..., list[Sample]]
) -> None:
    def told(ref: str) -> dict[str, float]:
        return {one.labels["name"]: one.value for one in answer(expression_of("Now", ref))}

    obs, reward = watched.obs.stats(), watched.reward.stats()
    assert told("A") == {OBS: obs.count, REWARD: 2}
    assert told("B") == {OBS: obs.num_batches, REWARD: reward.num_batches}
    assert told("C") == {OBS: obs.version, REWARD: reward.version}
    assert told("D") == {OBS: 0, REWARD: 0}
    assert all(0 < age < 120 for age in told("E").values())
    drift = {(one.labels["name"], one.labels["snapshot"]): one.value for one in answer(expression_of("Drift"))}
    moved = watched.obs.compare(SNAPSHOT, limit=1).symmetric_kl[0]
    assert moved > 1
    assert drift == {(OBS, SNAPSHOT): pytest.approx(moved), (REWARD, SNAPSHOT): 0}


def test_what_is_seen_at_a_glance_is_so(watched: Watched, answer: Callable[..., list[Sample]]) -> None:
    def told(panel: str, ref: str = "A") -> float:
        (found,) = answer(expression_of(panel, ref))
        return found.value

    assert (told("Servers"), told("Servers", "B"), told("Store"), told("Alerts")) == (1, 1, 1, 0)
    assert (told("Calls failed"), told("Budget left")) == (0, 1)
    assert 0 < told("Last commit") < 60
    assert 0 < told("Since a restart") < 120
    assert 0 < told("Slowest 1 % of calls") < 5
    assert 0 < told("Memory") < 1
    memory = told("Resident memory") / told("Resident memory", "B")
    assert told("Memory") == pytest.approx(memory, rel=0.25)


@pytest.mark.parametrize(
    ("panel", "limit"),
    [
        ("Calls under way", 16384),
        ("Streams that are open, by method", 16384),
        ("Held by calls", 2**30),
        ("Held by streams", 32 * 2**20),
        ("Queue for the device", 256),
        ("Contributions that wait", 8192),
    ],
)
def test_limits_are_the_settings(answer: Callable[..., list[Sample]], panel: str, limit: int) -> None:
    assert [one.value for one in answer(expression_of(panel, "B"))] == [limit]


def test_how_long_calls_take_is_recorded_of_calls_alone(watched: Watched) -> None:
    half = watched.prometheus.by("method", "normstats:call_seconds:p50")
    most = watched.prometheus.by("method", "normstats:call_seconds:p99")
    assert {"UpdateRunningStats", "Normalize", "GetNormalizer", "CompareSnapshots"} <= half.keys()
    assert not {"NormalizeStream", "UpdateRunningStatsStream", "SynchronizeStats", "Check"} & half.keys()
    assert all(0 < half[method] <= most[method] < 5 for method in half)


def test_starts_are_marked(watched: Watched, answer: Callable[..., list[Sample]]) -> None:
    marks = {one["name"]: one.get("expr") for one in dashboard.dashboard()["annotations"]["list"]}
    assert {one.labels["pod"] for one in answer(marks["Starts"], at_once=False)} == {"normstats-0"}
    assert answer(marks["Alerts"], at_once=False) == [], "none has lasted"


def rule_of(alert: str, severity: str = "") -> str:
    (found, *_) = (rule for rule in ALERTS if rule["alert"] == alert and severity in rule["labels"]["severity"])
    return str(found["expr"])


def pending(watched: Watched, alert: str) -> list[dict[str, Any]]:
    return [one for one in watched.prometheus.alerts() if one["labels"]["alertname"] == alert]


def failed_calls(watched: Watched) -> float:
    return watched.prometheus.value("normstats:failed_calls:ratio5m")


def test_credentials_that_cannot_be_read_are_told_of(watched: Watched) -> None:
    good = watched.credentials.read_text()
    assert not watched.prometheus.query(rule_of("NormstatsFilesStale"))
    watched.credentials.write_text("[[identity")
    watched.until(lambda: bool(watched.prometheus.query(rule_of("NormstatsFilesStale"))))
    watched.until(lambda: bool(pending(watched, "NormstatsFilesStale")))
    (told,) = pending(watched, "NormstatsFilesStale")
    assert told["annotations"]["summary"] == "A server cannot read its new credentials."
    assert "production/normstats-0" in told["annotations"]["description"]
    watched.credentials.write_text(good)
    watched.until(lambda: not watched.prometheus.query(rule_of("NormstatsFilesStale")))


def test_a_disk_that_hangs_is_told_of(watched: Watched) -> None:
    need_strace()
    # Two minutes of it, in three seconds.
    stalled = rule_of("NormstatsCommitsStalled").replace("[2m]", "[3s]")
    assert "[3s]" in stalled
    assert not watched.prometheus.query(stalled)
    producers = [threading.Thread(target=watched.update) for _ in range(5)]
    with failing(watched.server_id, "fdatasync,fsync", "EIO:delay_enter=6000000"):
        for one in producers:
            one.start()
            time.sleep(0.05)
        watched.until(lambda: bool(watched.prometheus.query(stalled)))
        assert not watched.prometheus.query(rule_of("NormstatsStoreDown"))
    for one in producers:
        one.join(20)
    watched.until(lambda: watched.update() == "OK")


def test_a_disk_that_fails_is_told_of(watched: Watched) -> None:
    need_strace()
    assert not watched.prometheus.query(rule_of("NormstatsStoreDown"))
    with failing(watched.server_id, "fdatasync,fsync", "EIO"):
        assert watched.update() == "UNAVAILABLE"
        watched.until(lambda: bool(watched.prometheus.query(rule_of("NormstatsStoreDown"))))
        watched.until(lambda: bool(pending(watched, "NormstatsStoreDown")))
        # The first that fails begins a series, and is in no rate.
        watched.until(lambda: watched.update() == "UNAVAILABLE" and failed_calls(watched) > 0)
    watched.until(lambda: not watched.prometheus.query(rule_of("NormstatsStoreDown")))
    watched.until(lambda: watched.update() == "OK")


def test_calls_that_the_store_failed_are_the_servers_own_fault(watched: Watched) -> None:
    if not watched.calls["UpdateRunningStats", "UNAVAILABLE"]:
        pytest.skip("nothing has failed: strace is not installed")
    assert failed_calls(watched) > 0
    assert not watched.prometheus.query(rule_of("NormstatsErrorBudgetBurn", "critical"))


def test_a_server_that_is_killed_is_told_of(watched: Watched) -> None:
    assert not watched.prometheus.query(rule_of("NormstatsDown", "critical"))
    watched.server.kill()
    watched.until(lambda: bool(watched.prometheus.query(rule_of("NormstatsDown", "critical"))))
    (told,) = watched.prometheus.query(rule_of("NormstatsDown", "critical"))
    assert told.labels == {"job": "normstats", "namespace": "production"}
    assert not watched.prometheus.query(rule_of("NormstatsDown", "warning"))
    watched.until(lambda: bool(pending(watched, "NormstatsDown")))
    (told_of,) = pending(watched, "NormstatsDown")
    assert told_of["annotations"]["description"] == (
        "Prometheus gets an answer from none of the servers in production (job normstats)."
    )


def test_a_server_that_was_never_there_is_told_of(watched: Watched) -> None:
    absent = rule_of("NormstatsDown", "critical").replace("normstats", "elsewhere")
    assert watched.prometheus.query(absent) == [Sample({}, 1.0)]


def test_the_configuration_it_ran_with_is_the_one_that_is_offered(watched: Watched, tmp_path: Path) -> None:
    jobs = watched.prometheus.by("job", "count by (job) (up)")
    assert jobs == {"normstats": 1, "normstats-normalizers": 1}

"""Specs are read as documented, and wrong ones are explained."""

from itertools import pairwise
from pathlib import Path

import pytest

from pagetwin.engine.errors import ConfigError, PagetwinError
from pagetwin.simulator.workloads.arrival_times import Gamma
from pagetwin.simulator.workloads.lengths import Fixed, LogNormal, Resampled, Uniform
from pagetwin.simulator.workloads.open_loop import OpenLoop
from pagetwin.simulator.workloads.spec import KINDS, parse_workload
from pagetwin.simulator.workloads.trace_files import synthetic_trace_path

ENDS = "input=5,output=3,requests=40"
SPECS = {
    "poisson": f"poisson:rate=8,{ENDS}",
    "gamma": f"gamma:rate=8,cv=3,{ENDS}",
    "constant": f"constant:rate=8,{ENDS}",
    "diurnal": f"diurnal:rate=8,swing=1,period=20,{ENDS}",
    "offline": f"offline:{ENDS}",
    "closed": f"closed:users=7,think=2,{ENDS}",
    "sessions": f"sessions:rate=2,turns=uniform:1:4,think=1,cv=2,system=9,families=2,{ENDS}",
    "trace": f"trace:file={synthetic_trace_path()},speed=2,requests=40",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_makes_requests_in_order_and_the_same_ones_again(kind: str) -> None:
    workload = parse_workload(SPECS[kind])
    first, again = list(workload.begin(3).arrivals()), list(workload.begin(3).arrivals())
    assert 7 <= len(first) <= 40
    assert first == again
    assert all(a.request.arrival_s <= b.request.arrival_s for a, b in pairwise(first))
    assert len({arrival.request.request_id for arrival in first}) == len(first)
    if kind not in ("trace", "offline", "constant"):
        assert first != list(workload.begin(4).arrivals())


def test_lengths_have_their_forms() -> None:
    trace = synthetic_trace_path()
    forms = {
        "7": Fixed(7),
        "uniform:3:9": Uniform(3, 9),
        "lognormal:800:1.5": LogNormal(800.0, 1.5),
        "lognormal:800:1.5:4000": LogNormal(800.0, 1.5, 4000),
    }
    for text, expected in forms.items():
        workload = parse_workload(f"gamma:rate=1,cv=2,input={text},output=1,requests=1")
        assert isinstance(workload, OpenLoop)
        assert workload.prompt == expected
        assert workload.arrivals == Gamma(1.0, 2.0)
    both = f"offline:input=resampled:{trace},output=fitted:{trace},requests=1"
    workload = parse_workload(both)
    assert isinstance(workload, OpenLoop)
    assert isinstance(workload.prompt, Resampled)
    assert len(workload.prompt.values) == 200
    assert isinstance(workload.output, LogNormal)
    assert workload.output.most == 971


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("poison:rate=8", "'poison' is no kind of workload; use poisson, gamma"),
        ("poisson", "poisson needs rate=NUMBER"),
        ("poisson:rate=8", "poisson needs input=LENGTH"),
        ("poisson:rate", "'rate' is not key=value"),
        ("poisson:rate=8,rate=9", "rate is given twice"),
        ("poisson:rate=x", "rate=x is not a number"),
        (f"poisson:rate=-8,{ENDS}", "rate=-8.0 is not a positive number"),
        (f"poisson:rate=nan,{ENDS}", "rate=nan is not a positive number"),
        (f"poisson:rate=8,cv=2,{ENDS}", "poisson has no cv; it takes rate, input"),
        ("poisson:rate=8,input=5,output=3", "the workload has no end; give requests=N"),
        ("poisson:rate=8,input=5,output=3,requests=0", "requests=0 is below 1"),
        ("poisson:rate=8,input=5,output=3,requests=2.5", "requests=2.5 is not a whole number"),
        ("poisson:rate=8,input=5,output=3,duration=inf", "duration=inf is not a positive"),
        ("poisson:rate=8,input=-5,output=3,requests=1", "input=-5: length is -5 tokens"),
        ("poisson:rate=8,input=nan,output=3,requests=1", "input=nan is no length; write N"),
        ("poisson:rate=8,input=uniform:9:3,output=3,requests=1", "uniform lengths from 9 to 3"),
        ("poisson:rate=8,input=lognormal:9,output=3,requests=1", "is no length; write N"),
        (
            "poisson:rate=8,input=lognormal:9:nan,output=3,requests=1",
            "coefficient of variation nan",
        ),
        (f"poisson:rate=8,families=3,{ENDS}", "give system=TOKENS, too"),
        (f"gamma:rate=8,cv=0,{ENDS}", "cv=0.0, the variation of gaps, is outside"),
        (f"diurnal:rate=8,swing=2,{ENDS}", "swing=2.0 is outside 0..1"),
        (f"diurnal:rate=8,period=0,{ENDS}", "period=0.0 s is not a positive time"),
        (f"closed:users=0,{ENDS}", "users=0 is outside"),
        (f"closed:users=2,think=-1,{ENDS}", "think=-1.0 is not a number of seconds"),
        (f"sessions:rate=1,turns=0,{ENDS}", "turns=0: length is 0"),
        ("trace:speed=2", "trace needs file=FILE"),
        ("trace:file=a.csv,unit=h", "unit=h is no unit of time; use s, ms, us, ns"),
        ("trace:file=a.csv,speed=0", "speed=0.0 is not a positive number"),
    ],
)
def test_a_wrong_spec_is_explained(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_workload(spec)
    assert str(caught.value).startswith(f"workload {spec!r}: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_told_by_its_path(tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    for spec in (f"offline:input=fitted:{missing},output=1,requests=1", f"trace:file={missing}"):
        with pytest.raises(PagetwinError, match="no such file"):
            parse_workload(spec).begin(0)

"""What a run of the suite leaves on disk: JUnit XML for a CI, Markdown for people."""

from xml.etree import ElementTree as ET

from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.suite.evidence import PropertyResult, Status
from pagetwin.conformance.suite.result import SuiteResult
from pagetwin.reports.tables import Table
from pagetwin.reports.verification_tables import property_table, verdict

_FAILURES = (Status.FAIL, Status.VACUOUS, Status.UNDECIDED)
_SKIPS = (Status.UNSUPPORTED, Status.WAIVED)


def junit_xml(result: SuiteResult) -> bytes:
    """One test case for each property. Only `unsupported` and `waived` are skips, with their
    reasons; too little evidence is a failure, so that a CI does not read it as a pass."""
    counts = result.counts
    suite = ET.Element(
        "testsuite",
        name=f"pagetwin verify {result.spec}",
        tests=str(len(result.results)),
        failures=str(sum(counts[status] for status in _FAILURES)),
        errors=str(counts[Status.ERROR] + (not result.complete)),
        skipped=str(sum(counts[status] for status in _SKIPS)),
        time=f"{result.seconds:.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("profile", result.profile),
        ("seed", result.seed),
        ("complete", result.complete),
        ("cut_short", result.cut_short),
        ("exit_code", int(result.exit_code)),
    ):
        ET.SubElement(properties, "property", name=name, value=_xml_text(str(value)))
    for one in result.results:
        suite.append(_case(one))
    if not result.complete:
        case = ET.SubElement(suite, "testcase", classname="pagetwin", name="the run is complete")
        ET.SubElement(case, "error", message=_xml_text(result.cut_short))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _case(one: PropertyResult) -> ET.Element:
    area = one.property_id.partition(".")[0]
    case = ET.Element(
        "testcase", classname=f"pagetwin.{area}", name=one.property_id, time=f"{one.seconds:.3f}"
    )
    details = ET.SubElement(case, "properties")
    ET.SubElement(details, "property", name="status", value=one.status.value)
    ET.SubElement(details, "property", name="examples", value=str(one.examples))
    for goal, count in one.goals.items():
        ET.SubElement(details, "property", name=f"goal: {goal}", value=str(count))
    if one.scenario:
        ET.SubElement(details, "property", name="scenario", value=one.scenario)
    reason = _xml_text(f"{one.status.value}: {one.reason}")
    if one.status in _FAILURES:
        failure = ET.SubElement(case, "failure", message=reason)
        failure.text = _xml_text("\n".join(map(str, one.violations)))
    elif one.status == Status.ERROR:
        ET.SubElement(case, "error", message=reason)
    elif one.status in _SKIPS:
        ET.SubElement(case, "skipped", message=reason)
    return case


def summary_markdown(result: SuiteResult) -> str:
    """The run on one page: verdict, properties, what the engine does not show."""
    parts = [
        f"# pagetwin verify {result.spec}",
        "" if result.complete else f"**Incomplete: {result.cut_short}**\n",
        verdict(result),
        "",
        property_table(result.results).markdown(),
        "",
        _violations(result),
        "## The engine",
        "",
        _engine_table(result).markdown(),
        "",
        "## What it shows and does",
        "",
        _capability_table(result).markdown(),
        "",
    ]
    return "\n".join(part for part in parts if part is not None)


def _violations(result: SuiteResult) -> str:
    failing = [one for one in result.results if one.num_violations]
    if not failing:
        return ""
    lines = ["## Violations", ""]
    for one in failing:
        lines += [f"### {one.property_id}", "", CATALOGUE[one.property_id].statement, ""]
        lines += ["```", *map(str, one.violations), "```", ""]
        if one.scenario:
            spec = result.spec
            lines += [f"Replay: `pagetwin verify replay {one.scenario} --engine '{spec}'`", ""]
    return "\n".join(lines)


def _engine_table(result: SuiteResult) -> Table:
    info = result.engine
    facts = {
        "name": info.name,
        "version": info.version,
        "model": info.model,
        "dtype": info.dtype,
        "device": info.device,
        "level": result.level.label,
        **info.knobs,
    }
    rows = [(name, value) for name, value in facts.items() if value]
    return Table(("", "value"), rows, num_left=2)


def _capability_table(result: SuiteResult) -> Table:
    rows = [
        (flag.value, support.status, support.reason.replace("|", "/"))
        for flag, support in sorted(result.capabilities.items())
    ]
    return Table(("capability", "status", "why"), rows, num_left=3)


def _xml_text(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(c if c in "\t\n" or ord(c) >= 32 else "?" for c in text)

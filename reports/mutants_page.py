"""The kill matrix for people: docs/mutants.md, the terminal's table, and a sentence."""

from collections.abc import Sequence

from pagetwin.conformance.mutants.kill import NEEDED_RATE, KillMatrix, MutantKills
from pagetwin.reports.tables import Table

RESULT = "reports/baselines/mutants.json"


def verdict(matrix: KillMatrix) -> str:
    """One sentence on the whole run; survivors by name."""
    real = [one for one in matrix.mutants if not one.equivalent]
    killed = sum(one.killed for one in real)
    sentence = (
        f"{killed} of {len(real)} mutants are killed in at least {NEEDED_RATE:.0%} of their seeds"
    )
    if matrix.not_measured:
        sentence += f", {len(matrix.not_measured)} more wait to be measured"
    if matrix.survivors:
        names = ", ".join(one.id for one in matrix.survivors)
        sentence += f"; survivors: {names}"
    if matrix.false_alarms:
        sentence += f"; the clean engine was accused in {len(matrix.false_alarms)} seeds"
    return sentence + "."


def render_mutants_page(matrix: KillMatrix) -> str:
    """docs/mutants.md."""
    control = sum(one.examples for one in matrix.control)
    alarms = len(matrix.false_alarms)
    parts = [
        "# Mutants: what the suite can see",
        "Known bugs of serving engines, and small ones that were written down from the engine's "
        "code by somebody who had not read the checkers, planted one at a time, each a few changed "
        "words in one function (`conformance/mutants`). A mutant is killed in a seed by the first "
        "example that breaks any property; it counts as killed if that happens in at least 19 of "
        "20 seeds (a row with fewer says so), "
        f"within {matrix.budget_s:g} processor seconds each. `pagetwin verify mutants` runs it "
        f"again; the numbers are those of [{RESULT}](../{RESULT}), and a test keeps them in "
        "step.",
        f"**{verdict(matrix)}**",
        f"Control: the clean engine under the same trials, {control} examples, {alarms} accused.",
        "## Survivors",
        _survivors(matrix.survivors),
        *_not_measured(matrix.not_measured),
        "## Killed",
        "Level: the lowest at which a property notices. Named: seeds in which the property that "
        "the mutant names fails as well, in the killing example or one of the next ten. "
        "Examples and processor seconds to the kill: median, and 90th percentile over the seeds.",
        _table([one for one in matrix.mutants if one.killed and not one.equivalent]),
        "## Equivalent",
        "Edits that change no behaviour, each with the argument; they are tried all the same.",
        *(
            f"- **{one.id}**: {one.statement} *Why nothing can notice:* {one.equivalent}"
            + (f" (But {one.seeds_killed} seeds did.)" if one.seeds_killed else "")
            for one in matrix.mutants
            if one.equivalent
        ),
    ]
    return "\n\n".join(parts) + "\n"


def terminal_row(row: MutantKills) -> str:
    """One line of the run as it goes."""
    if row.equivalent:
        state = "equivalent" if not row.seeds_killed else "NOT EQUIVALENT"
    else:
        state = "killed" if row.killed else "SURVIVED"
    by = f"{row.killed_by} ({row.level})" if row.killed_by else ""
    return (
        f"{row.id:<38} {state:<11} {row.seeds_killed:>2}/{len(row.seeds):<2} {by:<42} "
        f"{_pair(row.examples):>14} {_pair(row.seconds):>14}"
    )


def _survivors(survivors: Sequence[MutantKills]) -> str:
    if not survivors:
        return "None."
    return "\n".join(
        f"- **{one.id}** ({one.bug or 'no report'}): {one.statement} Seen in {one.seeds_killed} of "
        f"{len(one.seeds)} seeds."
        for one in survivors
    )


def _not_measured(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return ["Not measured in this run: " + ", ".join(names) + "."]


def _table(rows: Sequence[MutantKills]) -> str:
    columns = "mutant,bug,what is wrong,killed by,level,seeds,named,examples,seconds"
    return Table(
        columns.split(","),
        [
            (
                one.id,
                one.bug,
                one.statement,
                one.killed_by,
                one.level,
                f"{one.seeds_killed}/{len(one.seeds)}",
                f"{one.seeds_named}/{len(one.seeds)}",
                _pair(one.examples),
                _pair(one.seconds),
            )
            for one in rows
        ],
        num_left=5,
    ).markdown()


def _pair(values: tuple[float, float] | None) -> str:
    return "" if values is None else f"{values[0]:.3g}, {values[1]:.3g}"

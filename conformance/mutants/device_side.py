"""Mutants of what a device is sent, and of the work lists of its kernels, found without one."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

ENGINE = "pagetwin.engine."

DEVICE = (
    Mutant(
        id="device.old-block-kept",
        bug="",
        statement=("A device is not told of a block that a copy replaced."),
        expects="batch.device-tables",
        trigger="a copy on write",
        edits=(
            Edit(
                f"{ENGINE}input_batch:InputBatch._patch_table",
                ("            observer.set_blocks(row, index, (block_id,))"),
                ("            pass"),
            ),
        ),
    ),
    Mutant(
        id="device.first-change-wins",
        bug="",
        statement=("Of two changes of one place the first one holds."),
        expects="batch.device-tables",
        trigger="a row given up and taken within one sending",
        edits=(
            Edit(
                f"{ENGINE}device_tables:_Patches.merged",
                ("len(places) - 1 - np.unique(places[::-1], return_index=True)[1]"),
                ("np.unique(places, return_index=True)[1]"),
            ),
        ),
    ),
    Mutant(
        id="device.unsent-changes-lost",
        bug="",
        statement=("Changes that could not be sent are forgotten."),
        expects="batch.device-tables",
        trigger="a step without memory for its inputs",
        edits=(
            Edit(
                f"{ENGINE}device_tables:DeviceTables.patches",
                ("patches.merged()"),
                ("patches.merged()\n            patches.clear()"),
            ),
        ),
    ),
    Mutant(
        id="device.history-not-sent",
        bug="",
        statement=("A request with a presence penalty alone gets no token history."),
        expects="batch.device-tables",
        trigger="a presence penalty",
        edits=(
            Edit(
                f"{ENGINE}device_tables:DeviceTables.occupy", (" or params.presence_penalty"), ("")
            ),
        ),
    ),
    Mutant(
        id="device.padding-writes",
        bug="",
        statement=("Padding of a graph writes slot 0."),
        expects="batch.device-tables",
        trigger="decodes that are padded",
        edits=(
            Edit(
                f"{ENGINE}step_inputs:pad_decodes",
                ("padded(inputs.slot_mapping, -1)"),
                ("padded(inputs.slot_mapping, 0)"),
            ),
        ),
    ),
    Mutant(
        id="device.split-one-key-short",
        bug="",
        statement=("A split leaves out its last key."),
        expects="num.work-lists",
        trigger="any decode",
        edits=(
            Edit(
                f"{ENGINE}attention.decode_plan:plan_decode",
                ("np.minimum(start + SPLIT, lengths[member])"),
                ("np.minimum(start + SPLIT, lengths[member] - 1)"),
            ),
        ),
    ),
    Mutant(
        id="device.shared-by-the-last-block",
        bug="",
        statement=("Splits are shared where their last blocks are the same."),
        expects="num.work-lists",
        trigger="tables that differ in the middle",
        edits=(
            Edit(
                f"{ENGINE}attention.decode_plan:_find_sharing",
                ("is_same[later, at] = np.equal(*blocks).all(1)"),
                ("pass"),
            ),
        ),
    ),
    Mutant(
        id="device.shared-beyond-the-end",
        bug="",
        statement=("A split that is not full is shared, too."),
        expects="num.work-lists",
        trigger="common prefixes that end within a split",
        edits=(
            Edit(
                f"{ENGINE}attention.decode_plan:_find_sharing",
                ("num_full = lengths // SPLIT"),
                ("num_full = -(-lengths // SPLIT)"),
            ),
        ),
    ),
    Mutant(
        id="device.results-in-one-place",
        bug="",
        statement=("Partial results of two sequences wait in the same place."),
        expects="num.work-lists",
        trigger="two sequences of two splits",
        edits=(
            Edit(
                f"{ENGINE}attention.decode_plan:plan_decode",
                ("slots.cumsum() - slots"),
                ("slots.cumsum() - slots - (slots > 0) * (np.arange(len(slots)) > 0)"),
            ),
        ),
    ),
    Mutant(
        id="device.tiles-at-the-start",
        bug="",
        statement=("Every tile of a chunk stands at the chunk's first position."),
        expects="num.work-lists",
        trigger="a chunk of two tiles",
        edits=(
            Edit(
                f"{ENGINE}attention.prefill_plan:plan_prefill",
                ("(lengths - rows)[sequence] + done"),
                ("(lengths - rows)[sequence]"),
            ),
        ),
    ),
    Mutant(
        id="device.rest-left-out",
        bug="",
        statement=("Rows that do not fill a tile are left out."),
        expects="num.work-lists",
        trigger="a chunk that does not end with a tile",
        edits=(
            Edit(
                f"{ENGINE}attention.prefill_plan:plan_prefill",
                ("-(-rows // block_m), 0"),
                ("rows // block_m, 0"),
            ),
        ),
    ),
)

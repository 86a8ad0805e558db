"""The provenance checkpoints that the suite runs."""

from pagetwin.conformance.provenance.recipe import ProvenanceRecipe

VARIANTS = {
    "previous": ProvenanceRecipe(offset=1),
    "plain": ProvenanceRecipe(offset=5),
    "far": ProvenanceRecipe(offset=100),
    "grouped": ProvenanceRecipe(offset=33, num_heads=4, num_kv_heads=2, seed=1),
    "windowed": ProvenanceRecipe(offset=20, num_heads=2, sliding_window=21, seed=2),
    "two_layers": ProvenanceRecipe(offset=33, num_layers=2, seed=3),
    "all": ProvenanceRecipe(
        offset=40, num_layers=2, num_heads=4, num_kv_heads=2, sliding_window=24, seed=4
    ),
}
"""By name, in the order in which the suite uses them."""

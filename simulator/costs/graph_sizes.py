"""Which CUDA graphs an engine captures, and so to what a decode step is padded."""


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """The engine's sizes: 1, 2, 4, by eights below 256, by sixteens above, and max_num_seqs."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_num_seqs, 16)]
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)

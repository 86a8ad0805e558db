"""What a simulated run was like: columns, percentiles, bills, files."""

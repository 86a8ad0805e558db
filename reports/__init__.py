"""Reports: pages and summaries made from results."""

"""Many simulated replicas behind a gateway: routing, failures, scaling, disaggregation."""

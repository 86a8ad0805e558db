"""How long steps take: fitted to measured steps, or, without measurements, a roofline."""

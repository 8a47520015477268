"""`qzc pack`: what may be asked of it, one run of it, and what it reports."""

"""`qzc report`: a page of charts and words about the statistics of a model."""

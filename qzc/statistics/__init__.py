"""`qzc stats`: what a file holds or would hold, measured tensor by tensor."""

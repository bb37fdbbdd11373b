"""Teachers: better models, whose judgement of a batch a student learns."""

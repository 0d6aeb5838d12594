"""How the schema came to be: one file a step, in order; `database.migrate` runs what is missing."""

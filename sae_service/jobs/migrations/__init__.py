"""How the tables became what they are: one file for each change, applied in order by Alembic."""

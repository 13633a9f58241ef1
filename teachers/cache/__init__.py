"""The teacher cache: teacher outputs for exactly the views that a student will see, written once (see ``format``)."""

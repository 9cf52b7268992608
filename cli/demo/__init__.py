"""`dstack-cloud demo`: a whole confidential deployment on one machine, every check on the production path."""

"""The clouds that a deployment can run on, behind one interface (`functions/deploy/cloud.py`)."""

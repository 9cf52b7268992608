"""`dstack-util`: what a guest runs by hand or at boot."""

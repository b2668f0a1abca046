"""Generated from protocol/ by `make proto`; do not edit."""

"""What can be learned from: dataset types and their schemas."""

"""What `service` is made of: answers, many clients at once, limits, metrics, and where it runs."""

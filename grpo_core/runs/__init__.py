"""Runs as people see them: started, queued, stopped, resumed, compared, in processes and leases."""

"""One operator identity: runs PolicyData and Rego in sandboxes, computes agreed data, signs what it can vouch for."""

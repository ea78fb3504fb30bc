"""What lies on disks and on the Hub: rows in, stage folders out, and of strangers' files no more than is meant."""

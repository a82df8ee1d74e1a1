-- The ledger and retention ask for what waits of an event, whoever its consumer is.
CREATE INDEX backlog_by_event ON backlog (event_id);

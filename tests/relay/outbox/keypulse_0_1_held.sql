-- What it held: of `db`, three wait for Slack, one of them tried; one is being mailed, and one waits behind it.
INSERT INTO incidents VALUES ('db', 1, 1, 4), ('web', 2, 0, 5);
INSERT INTO events VALUES
    (1, 'e1', 'db', 'kms', 'Down', 'firing', 'f1', 100.5, '{"a": 1}', 'body 1'),
    (2, 'e2', 'db', 'kms', 'Down', 'firing', 'f2', 110.0, '{"a": 2}', 'body 2'),
    (3, 'e3', 'db', 'kms', 'Down', 'firing', 'f3', 120.0, '{"a": 3}', 'body 3'),
    (4, 'e4', 'db', 'kms', 'Down', 'firing', 'f4', 130.0, '{"a": 4}', 'body 4'),
    (5, 'e5', 'web', 'kms', 'Slow', 'resolved', 'f5', 140.0, '{"a": 5}', 'body 5');
INSERT INTO deliveries VALUES
    (1, 'd1', 1, 'db', 1, 'slack', 'delivered', 1, 'ok', 100.5, 0, NULL, 101, '{"ts": "1.2"}'),
    (2, 'd2', 2, 'db', 1, 'slack', 'retrying', 3, 'timeout', 110, 190, NULL, NULL, NULL),
    (3, 'd3', 3, 'db', 1, 'slack', 'queued', 0, NULL, 120, 0, NULL, NULL, NULL),
    (4, 'd4', 4, 'db', 1, 'slack', 'queued', 0, NULL, 130, 0, NULL, NULL, NULL),
    (5, 'd5', 3, 'db', 1, 'mail', 'sending', 1, NULL, 120, 150, 'run/1', NULL, NULL),
    (6, 'd6', 4, 'db', 1, 'mail', 'queued', 0, NULL, 130, 0, NULL, NULL, NULL),
    (7, 'd7', 5, 'web', 2, 'slack', 'queued', 0, NULL, 140, 0, NULL, NULL, NULL),
    (8, 'd8', 5, 'web', 2, 'mail', 'dead', 9, 'refused', 140, 0, NULL, 145, NULL);
INSERT INTO attempts VALUES
    (1, 1, 100.6, 0.4, 'ok', ''), (2, 1, 110, 10, 'timeout', 'no answer'), (2, 2, 130, 10, 'timeout', 'no answer'),
    (2, 3, 150, 10, 'timeout', 'no answer');
INSERT INTO quarantine VALUES (1, 99, '127.0.0.1', 400, 'no JSON', 'cut');

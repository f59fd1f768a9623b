// keypulse as a monitoring mixin: alerts, recording rules and dashboards, with `_config` for what differs from team to team.
//
// The rules themselves are rules/*.yml, which Prometheus and the chart load as they are. Here their text is read, and
// what `_config` changes is replaced in it; so with an unchanged `_config` `prometheusFiles` are these files byte for byte.
//
// Needs go-jsonnet, or jrsonnet: the older jsonnet in C++ ignores YAML's aliases.
local thresholds = std.parseYaml(importstr 'thresholds.yml');
assert std.parseYaml('[&a 1, *a]') == [1, 1] : 'this jsonnet ignores aliases in YAML; use go-jsonnet or jrsonnet';
{
  _config+:: {
    exporterJob: 'keypulse-exporter',
    relayJob: 'keypulse-relay',
    exporterSelector: 'job="%(exporterJob)s"' % self,
    // Of what a service may expose itself, too. A series without any job is the exporter's, by an aggregating proxy.
    exporterOnlySelector: 'job=~"%(exporterJob)s|"' % self,
    relaySelector: 'job="%(relayJob)s"' % self,
    keypulseSelector: 'job=~"%(exporterJob)s|%(relayJob)s"' % self,
    // Of the objectives in slo/.
    env: 'production',
    // A heading for each alert, in small letters, follows it.
    runbookURL: 'https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md',
    // Names of alerts that are left out of prometheusAlerts.
    disabled: [],
    // Their names, what they mean and the defaults: thresholds.yml.
    thresholds: { [name]: thresholds[name].default for name in std.objectFields(thresholds) },
  },

  local config = $._config,
  local check(name, number) =
    local bounds = { type: 'number', maximum: 999999 } + std.get(thresholds[name], 'schema', {});
    local refusal = '%s: expected %%s, got %s' % [name, std.manifestJsonMinified(number)];
    assert std.isNumber(number) && number > 0 : refusal % 'a number over 0';
    assert bounds.type == 'number' || number == std.floor(number) : refusal % 'a whole number';
    assert number <= bounds.maximum : refusal % ('at most %d' % bounds.maximum);
    number,
  local places = std.foldl(
    function(found, name)
      assert std.objectHas(thresholds, name) : 'no threshold has the name %s; thresholds.yml has them all' % name;
      found + [
        [std.strReplace(place, '{}', '%g' % number) for number in [thresholds[name].default, check(name, config.thresholds[name])]]
        for place in thresholds[name].places
      ],
    std.objectFields(config.thresholds),
    []
  ),
  local replacements = places + [
    ['job="keypulse-exporter"', config.exporterSelector],
    ['job=~"keypulse-exporter|"', config.exporterOnlySelector],
    ['job="keypulse-relay"', config.relaySelector],
    ['job=~"keypulse-exporter|keypulse-relay"', config.keypulseSelector],
    ['env="production"', 'env="%s"' % config.env],
    ['env: "production"', 'env: "%s"' % config.env],
    ['https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md', config.runbookURL],
  ],
  local configure(text, write=function(part) part) =
    std.foldl(function(done, pair) std.strReplace(done, write(pair[0]), write(pair[1])), replacements, text),
  local writeInJson(part) = local quoted = std.escapeStringJson(part); quoted[1:std.length(quoted) - 1],

  prometheusFiles:: {
    'rules/exporter.yml': configure(importstr 'rules/exporter.yml'),
    'rules/keys.yml': configure(importstr 'rules/keys.yml'),
    'rules/kms.yml': configure(importstr 'rules/kms.yml'),
    'rules/relay.yml': configure(importstr 'rules/relay.yml'),
    'slo/openslo.yml': configure(importstr 'slo/openslo.yml'),
    'slo/sloth.yml': configure(importstr 'slo/sloth.yml'),
  },

  // The groups as they are shipped: an alert is evaluated after the recordings in its group, which its message reads.
  local groups = [
    group
    for file in std.objectFields($.prometheusFiles)
    if std.startsWith(file, 'rules/')
    for group in std.parseYaml($.prometheusFiles[file]).groups
  ],
  local alerts = [rule.alert for group in groups for rule in group.rules if std.objectHas(rule, 'alert')],
  local unknown = std.setDiff(std.set(config.disabled), std.set(alerts)),
  prometheusAlerts+:: {
    assert unknown == [] : 'no alert has the name %s' % unknown[0],
    groups+: [
      group { rules: [rule for rule in super.rules if !std.member(config.disabled, std.get(rule, 'alert', ''))] }
      for group in groups
    ],
  },
  prometheusRules+:: { groups+: [] },

  grafanaDashboards+:: {
    'kms-health.json': std.parseJson(configure(importstr '../grafana/dashboards/kms-health.json', writeInJson)),
    'kms-on-call.json': std.parseJson(configure(importstr '../grafana/dashboards/kms-on-call.json', writeInJson)),
  },
}

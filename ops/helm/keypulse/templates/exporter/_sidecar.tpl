{{/*
The exporter beside a container of yours. A chart that has this one among its dependencies includes, with
`.Subcharts.keypulse` in the place of the dot:

  annotations:          {{ include "keypulse.sidecar.annotations" .Subcharts.keypulse }}
  a container:          {{ include "keypulse.sidecar.container" .Subcharts.keypulse }}
  entries of `volumes`: {{ include "keypulse.sidecar.volumes" .Subcharts.keypulse }}

ops/helm/examples/sidecar is such a chart.
*/}}
{{- define "keypulse.sidecar.annotations" -}}
{{ include "keypulse.checksums" (dict "root" . "part" "exporter") }}
{{- end }}

{{- define "keypulse.sidecar.container" -}}
{{ include "keypulse.server" (dict "root" . "part" "exporter") }}
{{- end }}

{{- define "keypulse.sidecar.volumes" -}}
{{ include "keypulse.volumes" (dict "root" . "part" "exporter") }}
{{- end }}

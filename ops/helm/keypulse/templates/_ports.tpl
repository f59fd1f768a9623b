{{/*
Which ports a part has to reach, by its configuration: lines of numbers, some of them twice. An address of this machine
is none. Policies know no names, so it is ports that they narrow.
*/}}

{{/* A URL's port; a database's has one for each of its hosts. */}}
{{- define "keypulse.ports.url" -}}
{{- $url := urlParse . -}}
{{- range splitList "," $url.host -}}
{{- if not (regexMatch "^(127\\.|localhost(:|$)|\\[::1\\])" .) -}}
{{ regexFind "[0-9]+$" (regexFind ":[0-9]+$" .) | default (get (dict "http" "80" "postgresql" "5432") $url.scheme) | default "443" }}
{{ end -}}
{{- end -}}
{{- end }}

{{/* Of the setting `proxy` in a mapping. A proxy of the environment or in a file is not known here. */}}
{{- define "keypulse.ports.proxy" -}}
{{- with .proxy }}{{ if ne . "none" }}{{ include "keypulse.ports.url" . }}{{ end }}{{ end -}}
{{- end }}

{{/* A KMS key's: `address` is a server of Transit's, `endpoint` one of Cloud KMS. */}}
{{- define "keypulse.ports.kms" -}}
{{- include "keypulse.ports.proxy" . -}}
{{- if .address }}{{ include "keypulse.ports.url" .address }}{{ else if .endpoint }}{{ include "keypulse.ports.url" (printf "grpc://%s" .endpoint) }}{{ else }}443
{{ end -}}
{{- end }}

{{- define "keypulse.ports.exporter" -}}
{{- range .targets }}{{ include "keypulse.ports.kms" . }}{{ end -}}
{{- range .backends -}}
{{- include "keypulse.ports.proxy" . -}}
{{- include "keypulse.ports.url" .health_url -}}
{{- with .metrics_url }}{{ include "keypulse.ports.url" . }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "keypulse.ports.relay" -}}
{{- if hasPrefix "postgresql:" .database }}{{ include "keypulse.ports.url" .database }}{{ end -}}
{{- range dig "alertmanager" "urls" list . }}{{ include "keypulse.ports.url" . }}{{ end -}}
{{- with .alertmanager }}{{ include "keypulse.ports.proxy" . }}{{ end -}}
{{- range .watchdogs }}{{ include "keypulse.ports.proxy" . }}{{ if .ping_url_file }}443
{{ end }}{{ end -}}
{{- with .messages -}}
{{- include "keypulse.ports.proxy" . -}}
{{- range list .prometheus_url .board_url (.runbook | default "" | regexFind "^https?://.*") -}}
{{- with . }}{{ include "keypulse.ports.url" . }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with dig "auth" "oidc" dict . }}{{ include "keypulse.ports.proxy" . }}{{ include "keypulse.ports.url" .issuer }}{{ end -}}
{{- with .interactive }}{{ include "keypulse.ports.proxy" . }}{{ if .app_token_file }}443
{{ end }}{{ end -}}
{{- range .channels -}}
{{- include "keypulse.ports.proxy" . -}}
{{- if eq .kind "email" }}{{ .port | default (get (dict "starttls" 587 "implicit" 465 "none" 25) (.tls | default "starttls")) | int }}
{{ else if ne .kind "log" -}}
{{- include "keypulse.ports.url" (.url | default .api_url | default "https://") -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "keypulse.ports.rotator" -}}
{{- with .kms }}{{ include "keypulse.ports.kms" . }}{{ end -}}
{{- with .driver -}}
{{- include "keypulse.ports.proxy" . -}}
{{- with .url | default .database }}{{ include "keypulse.ports.url" . }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Takes what the smoke test looks at: addresses, some of them empty. */}}
{{- define "keypulse.ports.smoke" -}}
{{- range compact . }}{{ include "keypulse.ports.url" . }}{{ end -}}
{{- end }}

{{- define "keypulse.ports.backend" -}}
{{- include "keypulse.ports.kms" .kms -}}
{{- if hasPrefix "postgresql:" .database }}{{ include "keypulse.ports.url" .database }}{{ end -}}
{{- end }}

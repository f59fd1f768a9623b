{{- define "keypulse.name" -}}
{{- .Values.nameOverride | default "keypulse" -}}
{{- end }}

{{/* What every object's name begins with; a Service's may begin with no digit, and hold no dot. */}}
{{- define "keypulse.fullname" -}}
{{- $chart := include "keypulse.name" . -}}
{{- $own := ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- $name := .Values.fullnameOverride | default $own | trunc 40 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" $name) -}}
{{- fail (printf "%s: no Service can be called so; expected fullnameOverride to be letters, digits and '-', a letter first" $name) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{/* The name of a part's objects. Takes (dict "root" $ "part" NAME), as all below that speak of a part. */}}
{{- define "keypulse.partName" -}}
{{ include "keypulse.fullname" .root }}-{{ .part }}
{{- end }}

{{- define "keypulse.selector" -}}
app.kubernetes.io/name: {{ include "keypulse.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{/* Takes `labels`, too: further ones. */}}
{{- define "keypulse.labels" -}}
{{ include "keypulse.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with merge dict (.labels | default dict) .root.Values.commonLabels }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{/* Takes `labels`, too, and a `namespace` where it is another than the release's. */}}
{{- define "keypulse.metadata" -}}
name: {{ include "keypulse.partName" . }}
namespace: {{ .namespace | default .root.Release.Namespace | quote }}
labels: {{- include "keypulse.labels" . | nindent 2 }}
{{- end }}

{{- define "keypulse.image" -}}
{{- $image := .root.Values.image -}}
{{- (index .root.Values .part).image | default (printf "%s/%s:%s" $image.repository .part ($image.tag | default .root.Chart.AppVersion)) -}}
{{- end }}

{{- define "keypulse.serviceAccountName" -}}
{{- (index .root.Values .part).serviceAccount.name | default (include "keypulse.partName" .) -}}
{{- end }}

{{- define "keypulse.port" -}}
{{- get (dict "exporter" 9911 "relay" 9912 "backend" 8000) .part -}}
{{- end }}

{{- define "keypulse.scheme" -}}
{{- (index .root.Values .part).web.tls | ternary "https" "http" -}}
{{- end }}

{{/* The address of a part's Service, as other namespaces see it. */}}
{{- define "keypulse.url" -}}
{{ include "keypulse.scheme" . }}://{{ include "keypulse.partName" . }}.{{ .root.Release.Namespace }}.svc:{{ include "keypulse.port" . }}
{{- end }}

{{/* The address of a part's pages as browsers see it, without a slash at its end; empty if there is none. */}}
{{- define "keypulse.publicUrl" -}}
{{- $url := .root.Values.exporter.publicUrl -}}
{{- if eq .part "relay" }}{{ $url = dig "auth" "public_url" "" .root.Values.relay.config }}{{ end -}}
{{- $url | default "" | trimSuffix "/" -}}
{{- end }}

{{/* "true" where a part has an Ingress or an HTTPRoute. */}}
{{- define "keypulse.isPublic" -}}
{{- $values := index .root.Values .part -}}
{{- if or (dig "ingress" "enabled" false $values) (dig "httpRoute" "enabled" false $values) }}true{{ end -}}
{{- end }}

{{/* "true" where the exporter has something to watch: without, it would refuse to start. */}}
{{- define "keypulse.watches" -}}
{{- with .root.Values.exporter.config }}{{ if or .targets .backends }}true{{ end }}{{ end -}}
{{- end }}

{{/* "true" where the part keeps its data in a PostgreSQL. */}}
{{- define "keypulse.onPostgres" -}}
{{- if hasPrefix "postgresql:" ((index .root.Values .part).config.database | default "") }}true{{ end -}}
{{- end }}

{{/* "true" where the part has a volume that only one pod can hold. */}}
{{- define "keypulse.hasVolume" -}}
{{- $values := index .root.Values .part -}}
{{- if and $values.persistence.enabled (not (and (eq .part "relay") (include "keypulse.onPostgres" .))) }}true{{ end -}}
{{- end }}

{{/* For kubectl: each file that the part's configuration names in its Secret, without those that are `made`. */}}
{{- define "keypulse.fromFiles" -}}
{{- range regexFindAll `/run/secrets/keypulse/[\w.-]+` ((index .root.Values .part).config | toRawJson) -1 | uniq }}
{{- if not (has (base .) $.made) }} \
       --from-file={{ base . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "keypulse.runbook" -}}
{{- .Values.runbookUrl | default "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md" -}}
{{- end }}

{{/* An address to fill in: <…>, or one with `acme` or `example` in its host, or first in its path. */}}
{{- define "keypulse.placeholder" -}}
(?i)^(https?://|[^/]*@)?([^/]*\.)?(acme|example)([.:>][^/]*)?(/|$)|^(https?://)?[^/]+/(acme|example)(/|$)|^<.*>$
{{- end }}

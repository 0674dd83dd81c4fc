{{- define "tollgate.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 characters: "-admin", "-relay" and what Kubernetes appends to pods still fit. */}}
{{- define "tollgate.fullname" -}}
{{- $name := include "tollgate.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if not (contains $name .Release.Name) -}}
{{- $name = printf "%s-%s" .Release.Name $name -}}
{{- else -}}
{{- $name = .Release.Name -}}
{{- end -}}
{{- $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "tollgate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "tollgate.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "tollgate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tollgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tollgate.labels" -}}
{{ include "tollgate.selectorLabels" . }}
{{ include "tollgate.releaseLabels" . }}
{{- end -}}

{{- define "tollgate.releaseLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "tollgate.relay.fullname" -}}
{{- include "tollgate.fullname" . }}-relay
{{- end -}}

{{- define "tollgate.relay.serviceAccountName" -}}
{{- if .Values.relay.serviceAccount.create -}}
{{- .Values.relay.serviceAccount.name | default (include "tollgate.relay.fullname" .) -}}
{{- else -}}
{{- .Values.relay.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Another name than the gateway's, whose selectors take every pod with its name: Services, policies, and a Deployment's
selector, which cannot be changed any more. It is also Prometheus' `job`. */}}
{{- define "tollgate.relay.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tollgate.name" . | trunc 57 | trimSuffix "-" }}-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tollgate.relay.labels" -}}
{{ include "tollgate.relay.selectorLabels" . }}
{{ include "tollgate.releaseLabels" . }}
{{- end -}}

{{- define "tollgate.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/*
A tree such as `config` as TOML. Not toToml: to it every number is a float, and the gateway refuses
`connections = 50000.0`.
*/}}
{{- define "tollgate.toml" -}}
{{- range $name, $value := . }}
{{- include "tollgate.toml.entry" (dict "path" "" "name" $name "value" $value "sections" false) }}
{{- end }}
{{- range $name, $value := . }}
{{- include "tollgate.toml.entry" (dict "path" "" "name" $name "value" $value "sections" true) }}
{{- end }}
{{- end -}}

{{/* Names with plain values come before sections: a name behind a section's heading would be in that section. */}}
{{- define "tollgate.toml.entry" -}}
{{- $name := include "tollgate.toml.name" .name -}}
{{- $path := ternary $name (printf "%s.%s" .path $name) (eq .path "") -}}
{{- $isList := and (kindIs "slice" .value) (not (empty .value)) -}}
{{- $isTables := and $isList (kindIs "map" (first (.value | default (list 0)))) -}}
{{- if kindIs "map" .value }}
{{- if .sections }}

{{ printf "[%s]" $path }}
{{- range $n, $v := .value }}
{{- include "tollgate.toml.entry" (dict "path" $path "name" $n "value" $v "sections" false) }}
{{- end }}
{{- range $n, $v := .value }}
{{- include "tollgate.toml.entry" (dict "path" $path "name" $n "value" $v "sections" true) }}
{{- end }}
{{- end }}
{{- else if $isTables }}
{{- if .sections }}
{{- range $table := .value }}

{{ printf "[[%s]]" $path }}
{{- range $n, $v := $table }}
{{- if not (kindIs "invalid" $v) }}
{{ include "tollgate.toml.name" $n }} = {{ include "tollgate.toml.value" $v }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- else if and (not .sections) (not (kindIs "invalid" .value)) }}
{{ $name }} = {{ include "tollgate.toml.value" .value }}
{{- end }}
{{- end -}}

{{- define "tollgate.toml.name" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ include "tollgate.toml.value" . }}{{ end -}}
{{- end -}}

{{/* JSON's texts, numbers and booleans are TOML too. */}}
{{- define "tollgate.toml.value" -}}
{{- if kindIs "map" . -}}
{ {{- range $i, $name := keys . | sortAlpha }}{{ if $i }},{{ end }} {{ include "tollgate.toml.name" $name }} = {{ include "tollgate.toml.value" (get $ $name) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $i, $value := . }}{{ if $i }}, {{ end }}{{ include "tollgate.toml.value" $value }}{{ end }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{/*
What of `config` counts after a restart only; the rest the gateway reads again by itself, and no socket has to move.
The list is that of the gateway's manual (`tollgate config print --defaults`, at the top).
*/}}
{{- define "tollgate.restartConfig" -}}
{{- $config := omit .Values.config "channels" "callback" "history" "api" "auth" "limits" "server" -}}
{{- $auth := pick (.Values.config.auth | default dict) "jwks" -}}
{{- $limits := pick (.Values.config.limits | default dict) "http_connections" "handshake_timeout" -}}
{{- $server := omit (.Values.config.server | default dict) "allowed_origins" "allowed_headers" "trusted_proxies" -}}
{{- list $config $auth $limits $server | toJson -}}
{{- end -}}

{{- define "tollgate.publicPort" -}}
{{- dig "server" "listen" "0.0.0.0:8000" .Values.config | toString | regexFind "[0-9]+$" -}}
{{- end -}}

{{- define "tollgate.adminPort" -}}
{{- dig "admin" "listen" "127.0.0.1:9000" .Values.config | toString | regexFind "[0-9]+$" -}}
{{- end -}}

{{/* A duration such as "1m 30s" in whole seconds, rounded up; nothing if it cannot be read. */}}
{{- define "tollgate.seconds" -}}
{{- $units := dict "ms" 1 "millis" 1 "msec" 1 "s" 1000 "sec" 1000 "secs" 1000 "second" 1000 "seconds" 1000 "m" 60000 "min" 60000 "mins" 60000 "minute" 60000 "minutes" 60000 "h" 3600000 "hr" 3600000 "hrs" 3600000 "hour" 3600000 "hours" 3600000 -}}
{{- $ms := 0 -}}
{{- $ok := regexMatch "^( *[0-9]+ *[a-z]+)+ *$" (toString .) -}}
{{- range regexFindAll "[0-9]+ *[a-z]+" (toString .) -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if hasKey $units $unit -}}
{{- $ms = add $ms (mul (regexFind "^[0-9]+" . | int64) (get $units $unit)) -}}
{{- else -}}
{{- $ok = false -}}
{{- end -}}
{{- end -}}
{{- if $ok }}{{ div (add $ms 999) 1000 }}{{ end -}}
{{- end -}}

{{- define "tollgate.drainSeconds" -}}
{{- $settle := include "tollgate.seconds" (dig "drain" "settle" "5s" .Values.config) -}}
{{- $window := include "tollgate.seconds" (dig "drain" "window" "20s" .Values.config) -}}
{{- if and $settle $window }}{{ add (int64 $settle) (int64 $window) }}{{ end -}}
{{- end -}}

{{/* The gateway waits 3 s for the last sockets after the window; the rest is margin. */}}
{{- define "tollgate.graceSeconds" -}}
{{- add (include "tollgate.drainSeconds" . | int64) 5 -}}
{{- end -}}

{{- define "tollgate.isAutoscaled" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled }}yes{{ end -}}
{{- end -}}

{{- define "tollgate.maxReplicas" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicaCount (eq (include "tollgate.isAutoscaled" .) "yes") | int64 -}}
{{- end -}}

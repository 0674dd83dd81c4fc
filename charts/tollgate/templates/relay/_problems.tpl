{{/* What is wrong with the values of the relay. `config.relay` would be in the gateway's ConfigMap, relay or not. */}}
{{- define "tollgate.problems.relay" -}}
{{- if hasKey .Values.config "relay" }}
- config.relay would be in the gateway's configuration too, and the gateway does not need to know where Postgres is: move it to relay.config.relay
{{- end }}
{{- if .Values.relay.enabled }}
{{- include "tollgate.problems.relay.addresses" . -}}
{{- include "tollgate.problems.relay.environment" . -}}
{{- include "tollgate.problems.relay.files" . -}}
{{- end }}
{{- end -}}

{{- define "tollgate.problems.relay.addresses" -}}
{{- $relay := .Values.relay.config.relay | default dict -}}
{{- $config := include "tollgate.relay.config" . | fromJson -}}
{{- $secretEnv := include "tollgate.relay.secretEnv" . | fromJson -}}
{{- $names := keys $secretEnv -}}
{{- range .Values.relay.extraEnv }}{{ $names = append $names .name }}{{ end }}
{{- if ne (dig "broker" "kind" "memory" .Values.config) "redis" }}
- relay.enabled is true and config.broker.kind is memory, in which no other process can publish: set config.broker.kind to redis
{{- end }}
{{- if not (or $relay.url (has "TOLLGATE_RELAY__URL" $names) (has "PGHOST" $names)) }}
- relay.config.relay.url is empty, so the relay would not find Postgres: set it, such as postgres://tollgate_relay@db/shop?sslmode=verify-full, or write relay.secretEnv.TOLLGATE_RELAY__URL: {secretName: NAME, key: KEY}
{{- end }}
{{- range $name := list "url" "listen_url" }}
{{- $url := get $relay $name | toString }}
{{- if or (regexMatch "://[^/@]*:[^/]*@" $url) (regexMatch "[?&]password=" $url) }}
- relay.config.relay.{{ $name }} holds a password, and relay.config becomes a ConfigMap: put the password into a Secret, name that in relay.secretFiles, set relay.config.relay.password_file to /run/secrets/NAME/KEY, and leave only the user before the @
{{- end }}
{{- end }}
{{- if regexMatch "://[^/]*:[^/]*@" (dig "redis" "url" "" .Values.relay.config | toString) }}
- relay.config.redis.url holds a password, and relay.config becomes a ConfigMap: put the password into a Secret, name that in relay.secretFiles, set relay.config.redis.password_file to /run/secrets/NAME/KEY, and leave only the user before the @
{{- end }}
{{- if dig "redis" "sentinel_password" "" .Values.relay.config }}
- relay.config.redis.sentinel_password is a secret, and relay.config becomes a ConfigMap: put it into a Secret, name that in relay.secretFiles, and set relay.config.redis.sentinel_password_file to /run/secrets/NAME/KEY
{{- end }}
{{- end -}}

{{- define "tollgate.problems.relay.environment" -}}
{{- $computed := "^TOLLGATE_(CONFIG|ADMIN__LISTEN|BROKER__KIND)$" -}}
{{- $names := keys .Values.relay.secretEnv -}}
{{- range .Values.relay.extraEnv }}
{{- $names = append $names .name }}
{{- if and (regexMatch "^TOLLGATE_.+__|^TOLLGATE_CHANNELS$" .name) (hasKey . "value") (not (regexMatch $computed .name)) }}
- relay.extraEnv has the setting {{ .name }} with its value: write it under relay.config, or, if it is a secret, under relay.secretEnv
{{- end }}
{{- if and (eq .name "PGPASSWORD") (hasKey . "value") }}
- relay.extraEnv has PGPASSWORD with its value, which everybody can read who can read Deployments: write it under relay.secretEnv
{{- end }}
{{- end }}
{{- range $names | sortAlpha }}
{{- if regexMatch $computed . }}
- relay.secretEnv or relay.extraEnv has {{ . }}, and the chart computes ports or probes from that setting: write it under config
{{- end }}
{{- end }}
{{- end -}}

{{- define "tollgate.problems.relay.files" -}}
{{- $secretFiles := include "tollgate.relay.secretFiles" . | fromJson -}}
{{- $extra := include "tollgate.relay.extraVolumes" . | fromJson -}}
{{- $own := include "tollgate.configFiles" .Values.relay.config | splitList "\n" | compact -}}
{{- $used := dict -}}
{{- range $path := include "tollgate.relay.configFiles" . | splitList "\n" | compact }}
{{- $name := regexReplaceAll "^/run/secrets/([^/]*)/.*$" $path "$1" }}
{{- $_ := set $used $name true }}
{{- $isMounted := or (not (hasPrefix "/run/secrets/" $path)) (hasKey $secretFiles $name) }}
{{- range $extra.mounts }}{{ if hasPrefix .mountPath $path }}{{ $isMounted = true }}{{ end }}{{ end }}
{{- /* What `config` names and nobody mounts is told of already. */}}
{{- if and (not $isMounted) (has $path $own) }}
- relay.config names the file {{ $path }}, which the relay's pods do not have: write relay.secretFiles.{{ $name }}: {secretName: NAME}
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.relay.secretFiles }}
{{- if not (hasKey $used $name) }}
- relay.secretFiles.{{ $name }} is used by nothing, and the relay's pods would still wait for its Secret: name /run/secrets/{{ $name }}/KEY in relay.config, or set relay.secretFiles.{{ $name }} to null
{{- end }}
{{- end }}
{{- end -}}

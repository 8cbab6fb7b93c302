package report

import (
	"html/template"
	"io"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/campaign"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
)

// HTML writes one page that needs nothing else: no script, no font, no picture.
func HTML(w io.Writer, r *campaign.Report) error {
	return page.Execute(w, struct {
		*campaign.Report
		Tiers []string
	}{r, Tiers(r)})
}

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"word": func(c *campaign.Cell, row *campaign.Row) string { s, _ := Word(c, row); return s },
	"class": func(c *campaign.Cell, row *campaign.Row) string {
		_, code := Word(c, row)
		return map[string]string{"31": "bad", "32": "good", "33": "warn", "2": "none", "0": "plain"}[code]
	},
	"bare":   func(row *campaign.Row) *campaign.Cell { return row.Cell(stage.None, stage.Attack) },
	"attack": func(row *campaign.Row, tier string) *campaign.Cell { return row.Cell(tier, stage.Attack) },
	"twin":   func(row *campaign.Row, tier string) *campaign.Cell { return row.Cell(tier, stage.Twin) },
	"text":   printable,
	"real":   func(tier string) bool { return tier != stage.None },
}).Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Bulkhead red team: {{.Totals.Broken}} broken of {{.Totals.Scenarios}}</title>
<style>
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c1f23;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #e3e5e8;vertical-align:top}
th{font-weight:600;color:#555}td.c{white-space:nowrap;font-variant-numeric:tabular-nums}
.good{color:#11632b}.bad{color:#fff;background:#b3261e;font-weight:600}.warn{color:#8a5a00;background:#fff6e0}.none{color:#888}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f6f7;padding:.6rem;font-size:12.5px;max-height:24rem;overflow:auto}
details>summary{cursor:pointer}.big{font-size:1.1rem;padding:.6rem 1rem;border-radius:.4rem;display:inline-block}
.big.ok{background:#e3f4e8;color:#11632b}.big.no{background:#b3261e;color:#fff}small{color:#666}ul{padding-left:1.2rem}
</style></head><body>
<h1>Bulkhead red team</h1>
<p><small>{{.Started.Format "2006-01-02 15:04 UTC"}} · {{printf "%.0f" .Seconds}} s · agent: {{.Agent}} · {{.Host.Version}} · Linux {{.Host.Kernel}} · sessions of user {{.Host.UID}}</small></p>
<p class="big {{if .OK}}ok{{else}}no{{end}}">{{if .OK}}No attack succeeded in a sandbox.{{else}}{{.Totals.Broken}} attacks succeeded in a sandbox; {{len .Problems}} problems.{{end}}</p>
<p>{{.Totals.Scenarios}} scenarios, of which {{.Totals.Proven}} work when nothing contains them. Contained: {{.Totals.Contained}}. Broken: {{.Totals.Broken}}.
Runs that prove nothing: {{.Totals.Invalid}}. Honest tasks that failed: {{.Totals.TwinFailed}}. Not run: {{.Totals.NotRun}}.
Repeated, since they proved nothing at first: {{.Totals.Repeated}}.</p>
{{if .Problems}}<h2>Problems</h2><ul>{{range .Problems}}<li>{{text .}}</li>{{end}}</ul>{{end}}
<h2>Matrix</h2>
<p>Uncontained: how often the attack worked with nothing in its way. In a tier: how often it worked, which must be 0, and whether the
honest task under the same policy still works. An attack that does not work uncontained does not count. Each row opens to its evidence.</p>
<table><thead><tr><th>Attack</th><th>Covers</th><th>Uncontained</th>{{range .Tiers}}<th>{{.}}</th><th>twin</th>{{end}}</tr></thead><tbody>
{{$tiers := .Tiers}}{{range $row := .Rows}}<tr><td><details><summary><b>{{.Name}}</b> {{.Title}}</summary>
<p><small>{{.Category}} · {{.Outcome}} · attacker: {{.Attacker}}{{if .Reference}} · {{.Reference}}{{end}}</small></p>
{{if .Known}}<p class="warn">Known defect: {{.Known}}</p>{{end}}{{if .Unproven}}<p class="warn">May be unproven: {{.Unproven}}</p>{{end}}
{{range $c := .Cells}}<p><b>{{.Tier}}, {{.Kind}}</b>: {{if .NotRun}}not run: {{.NotRun}}{{else}}{{.Succeeded}} succeeded, {{.Failed}} failed, {{.Invalid}} prove nothing, of {{.Runs}}{{end}}</p>
{{range .Repeated}}<p>repeated: {{text .Invalid}}</p>{{end}}
{{range $i, $o := .Outcomes}}{{if lt $i 3}}
{{range .Seen}}<p>seen: {{.Effect}} <small>({{text .Detail}})</small></p>{{end}}{{range .Missing}}<p>missing: {{.}}</p>{{end}}
{{if .Invalid}}<pre>{{text .Invalid}}</pre>{{end}}
{{if .Refused}}<p>refused, by reason:{{range $k, $v := .Refused}} {{$k}} ×{{$v}}{{end}}</p>{{end}}
{{if .Events}}<pre>{{range .Events}}{{text .}}
{{end}}</pre>{{end}}{{if .Output}}<details><summary>what the session printed</summary><pre>{{text .Output}}</pre></details>{{end}}
{{end}}{{end}}{{end}}{{range .Searches}}<p><b>{{.Tier}}, variations</b>: {{.Tries}} tried, {{.Invalid}} prove nothing, {{len .Found}} broke through</p>
{{range .Found}}<pre>{{text .Source}}</pre>{{end}}{{end}}</details></td><td>{{range .Covers}}{{.}} {{end}}</td>
{{$b := bare $row}}<td class="c {{class $b $row}}">{{word $b $row}}</td>{{range $tiers}}{{$a := attack $row .}}{{$t := twin $row .}}<td class="c {{class $a $row}}">{{word $a $row}}</td><td class="c {{class $t $row}}">{{word $t $row}}</td>{{end}}</tr>
{{end}}</tbody></table>
<h2>Not tested, and why</h2><ul>{{range $row := .Rows}}{{range .Cells}}{{if .NotRun}}{{if eq .Kind "attack"}}<li>{{$row.Name}} in {{.Tier}}: {{.NotRun}}</li>{{end}}{{end}}{{end}}{{end}}</ul>
<h2>Host</h2><ul><li>a machine of its own for contained runs: {{.Host.Private}}</li>{{range .Host.Tools}}<li>{{.}}</li>{{end}}{{range .Host.Notes}}<li>{{.}}</li>{{end}}</ul>
</body></html>
`))

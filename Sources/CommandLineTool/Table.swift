/// Columns aligned by the widest cell, two spaces between them, no trailing spaces. The last column is cut to the terminal.
struct Table {
  private(set) var rows: [[Styled]] = []
  /// Printed before each row.
  var indent = ""
  /// Columns whose cells are aligned to the right.
  var rightAligned: Set<Int> = []

  mutating func add(_ row: [Styled]) { rows.append(row) }

  func lines(_ console: Console) -> [String] {
    var widths: [Int] = []
    for row in rows {
      for (index, cell) in row.enumerated() {
        if index == widths.count { widths.append(0) }
        widths[index] = max(widths[index], cell.text.count)
      }
    }
    return rows.map { line($0, widths, console) }
  }

  private func line(_ row: [Styled], _ widths: [Int], _ console: Console) -> String {
    var result = indent
    var used = indent.count
    let last = row.lastIndex { !$0.text.isEmpty } ?? -1
    for index in 0..<(last + 1) {
      var cell = row[index]
      if index == row.count - 1 && console.isTerminal { cell.text = cut(cell.text, console.width - used) }
      let padding = String(repeating: " ", count: max(0, widths[index] - cell.text.count))
      let isRight = rightAligned.contains(index)
      result += (isRight ? padding : "") + cell.rendered(console)
      if index < last { result += (isRight ? "" : padding) + "  " }
      used += widths[index] + 2
    }
    return result
  }

  private func cut(_ text: String, _ width: Int) -> String {
    // Too narrow to be worth cutting: let the terminal wrap it.
    guard width >= 20, text.count > width else { return text }
    return text.prefix(width - 1) + "…"
  }
}
